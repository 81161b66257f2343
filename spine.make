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
# anatomical knowledge, one number: bone in a slice that shows vertebrae, some 20 cm^2 in this field of view
PRIOR    = --n_class $(N_CLASS) --constant_mm2 2000
TRAINED  =
LEARN    = --n_epoch 60 --l_rate 4e-3 --lr_decay 0.5 --lr_decay_epoch 20
ADAPT    = --n_epoch 30 --l_rate 5e-4 --lr_decay 0.7 --lr_decay_epoch 10 --batch_size 8
# upl keeps all pieces: a slice shows several of a spine
AGREE   += --pieces all
# shown is what the adaptation does; the choice without labels is to keep the source network, which its refresh agrees with
PANEL_OF = --which last

# -- runs: those of make/adaptation.mk, one of them otherwise ---------------------------------------------------------------
# the source network learns from turned and flipped images too: bone is bone whichever way it is turned
$(RD)/cesource: private OPT = $(SOURCE) --model_weights="" $(LEARN) --augment \
   --augmentation "{'flip': True, 'rotate': 45}"
MOVES    = , 'flip': True, 'rotate': 45

# -- an experiment of your own: take the # away from its name and its line, then `make -f spine.make gentle` -----------------
# ABL += gentle
# $(RD)/gentle: private OPT = $(START) --method sfda $(ADAPT) --l_rate 1e-4 $(call sfda_loss,$(COLUMN))

include make/rules.mk
