# The demo: a network trained on CT finds vertebrae on MR, after adapting without a single CT image. Real images, two small
# volumes out of a pinned Python package (tptbox, Apache-2.0): one patient a modality, so it shows a method at work and
# proves no accuracy.
#
#   make                               this file, after making the virtual environment
#   make -f spine.make sfda            one run, and what it needs
#   make -f spine.make ablations
#   make -f spine.make ORDER='mr ct'   the other way, from MR to CT, in results/spine_mr_ct
ORDER   := ct mr
SET     := $(if $(filter mr,$(firstword $(ORDER))),spine_mr_ct,spine)
VOLUMES :=
DATA    := $(ORDER:%=data/spine_%)
TRN      = cesource_transfer noadap sfda_lr0 sfda SFDA_TrueSize fs
# what adapts starts from a source network that learnt from random curves of grey levels, class by class (make/transfer.mk): in
# another modality bone may be bright or dark. SOURCE_RUN=cesource starts from the usual one
SOURCE_RUN = cesource_transfer
include make/adaptation.mk
$(if $(filter ct_mr mr_ct,$(subst $(space),_,$(strip $(ORDER)))),,$(error ORDER is 'ct mr' or 'mr ct', not '$(ORDER)'))
SMALL    = yes

# -- facts and settings -----------------------------------------------------------------------------------------------
NET      = UNet:nG=4
BATCH    = 4
N_CLASS  = 2
LABELS   = vertebra
SIZE_OF  = 'soft_size'
G_RGX    = ([a-z]+\d+)_(\d+)
TT_DATA  = [('IMG', png_transform, False), ('GT', gt_transform, False), ('GT', gt_transform, False)]
CUT      = -m preprocess.archives.tptbox --downloads data/downloads
data/spine_ct: private SLICE = ct
data/spine_mr: private SLICE = mr
# one patient: there are no fewer to adapt to
PATIENTS =
# one number of the source leaves it with the network: bone in its slices that show vertebrae, 12 to 14 cm^2
PRIOR    = --n_class $(N_CLASS) --source_mean $(firstword $(DATA))
sizes/$(SET).csv: | $(firstword $(DATA))
TRAINED  =
LEARN    = --n_epoch 90 --l_rate 4e-3 --lr_decay 0.5 --lr_decay_epoch 30
# gentle: from a good start a rate of 2e-4 already does harm, from MR to CT
ADAPT    = --n_epoch 20 --l_rate 5e-5 --lr_decay 0.7 --lr_decay_epoch 5 --batch_size 8
# upl keeps all pieces: a slice shows several of a spine
AGREE   += --pieces all
# shown is what the adaptation does; the choice without labels mostly keeps its start, as one patient tells too little
PANEL_OF = --which last

# -- runs: those of make/adaptation.mk, but for two -----------------------------------------------------------------------
# beside them, as ablations, the usual source network, which learns from images a little turned, darker and brighter
ABL     += cesource noadap_usual
$(RD)/cesource: private OPT = $(SOURCE) --model_weights="" $(LEARN) --augment --augmentation "{'rotate': 15}"
MOVES    = , 'rotate': 15
# and is shown the target as it is, as noadap is the other one
$(RD)/noadap_usual: private OPT = --method noadap --model_weights $(RD)/cesource/$(CHOSEN) --saveim True --entmap

# -- an experiment of your own: take the # away from its name and its line, then `make -f spine.make gentle` -----------------
# ABL += gentle
# $(RD)/gentle: private OPT = $(START) --method sfda $(ADAPT) --l_rate 1e-4 $(call sfda_loss,$(COLUMN))

include make/rules.mk
