# Adversarial output-space adaptation (AdaptSegNet, Tsai et al. 2018; ADVENT, Vu et al. 2019): street scenes, from the game
# GTA5 with labels to Cityscapes without. 19 classes, 255 is ignored; scored by the intersection over union of the
# whole validation set at 2048 x 1024.
#
#   make -f gta5.make                            the main runs, pictures, report, archive
#   make -f gta5.make ablations                  other adversaries, and one table of all
#   make -f gta5.make BACKBONE=/path/to/resnet101.pth    weights of ImageNet, in torchvision's names; nothing is downloaded
#   make -f gta5.make PARITY=1 RD=results/gta5-parity    the network as published numbers were made with, its fault included
#
# Data: data/gta5_source and data/cityscapes_target if they are there; else cut from data/streets (GTA5/images,
# GTA5/labels; leftImg8bit, gtFine); else from a phantom.
SET     := gta5
VOLUMES := data/streets
DATA    := data/gta5_source data/cityscapes_target
include make/adaptation.mk
TRN      = cesource noadap adapt adapt_multi fs
ABL      = adapt_ls adapt_advent adapt_minent
PRIORS   =
PANEL    = noadap adapt fs
PLOTS    = $(addprefix $(RD)/,val_miou.png panel.png adversaries.png adapt_colour)

# weights of a trunk trained on ImageNet, a file
BACKBONE =

# -- facts ------------------------------------------------------------------------------------------------------------
CUT     = -m preprocess.archives.streets --root $(VOLUMES)
TT_DATA = [('IMG', png_transform, False), ('GT', gt_transform, False), ('GT', gt_transform, False)]
SOURCE  = --target_dataset data/gta5_source --grp_regex '$(S_RGX)'
S_RGX   = (\d+)
T_RGX   = ([a-z-]+)_(\d+_\d+)
TARGET  = --target_dataset data/cityscapes_target --target_folders "$(TT_DATA)" --grp_regex '$(T_RGX)'
COMMON  = $(TARGET) --network $(NET) $(if $(BACKBONE),--backbone_weights '$(BACKBONE)') --n_class 19 --ignore 255 --modalities 3 \
          --metric_axis $(shell seq 0 18) --scores iou --batch_size $(BATCH) --optimiser sgd --l_rate 2.5e-4 \
          --weight_decay 5e-4 --lr_rule poly $(LEARN) --target_losses "[('CrossEntropy', {}, 1)]"
# as published the adversarial runs start from ImageNet; on the small phantom, from the source network
BOTH    = $(if $(filter small,$(PHANTOM)),$(WEIGHTS)) --method adversarial --source_dataset data/gta5_source --source_regex '$(S_RGX)' \
          $(if $(PARITY),--bn_stats both)
data/gta5_source: private SLICE = --kind gta5 $(S_SIZE)
data/cityscapes_target: private SLICE = --kind cityscapes $(T_SIZE)

# -- settings: on the small phantom; and as published, 150,000 of 250,000 steps (an epoch is 2975 pictures of the street, or
# 24,466 of the game) ---------------------------------------------------------------------------------------------------
ifeq ($(PHANTOM),small)
BATCH     = 4
LEARN     = --optimiser adam --n_epoch 40 --l_rate 2e-3
S_LEARN   =
S_SIZE    = --size 128 72 --val 8
T_SIZE    = --size 128 64 --truth_size 256 128
ADVERSARY = --n_epoch 10 --l_rate 2e-4 --d_width 16
else
NET       = DeepLabV2$(if $(PARITY),:$(PUBLISHED))
PUBLISHED = aspp_branches=2,layout=caffe,align_corners=True,normalise=caffe
BATCH     = 1
LEARN     = --n_epoch 50 --poly_epochs 84 --eval_every 2
S_LEARN   = --n_epoch 6 --poly_epochs 10 --eval_every 1
S_SIZE    = --size 1280 720 --val $(if $(PHANTOM),6,500)
T_SIZE    = --size 1024 512 --truth_size 2048 1024
ADVERSARY =
endif
LEAST_SQUARES = 1e-2

# -- runs -------------------------------------------------------------------------------------------------------------
# lower bound: trained on the game, and looked at on the street; upper bound: trained on the street
$(RD)/cesource: private OPT = $(SOURCE) $(S_LEARN)
$(RD)/noadap: private OPT = $(WEIGHTS) --method noadap --saveim True
$(RD)/fs: private OPT = --saveim True
# one discriminator, at the output; one more at the next coarser level
$(RD)/adapt: private OPT = $(BOTH) $(ADVERSARY) --lambda_adv $(firstword $(LAMBDAS)) --saveim True
$(RD)/adapt_multi: private OPT = $(BOTH) $(ADVERSARY) --lambda_adv $(LAMBDAS)
# least squares in place of the cross-entropy; entropy maps in place of probabilities (ADVENT); their mean alone (MinEnt)
$(RD)/adapt_ls: private OPT = $(BOTH) $(ADVERSARY) --gan ls --lambda_adv $(LEAST_SQUARES)
$(RD)/adapt_advent: private OPT = $(BOTH) $(ADVERSARY) --d_input entropy --lambda_adv $(firstword $(LAMBDAS))
$(RD)/adapt_minent: private OPT = $(BOTH) $(ADVERSARY) --lambda_adv 0 --lambda_ent 1e-3
# inference: the masks of a trained network
$(RD)/cesourceim: private OPT = $(WEIGHTS) --mode makeim

# -- pictures of the adversarial run: its losses, and its predictions in Cityscapes' colours -----------------------------
$(RD)/adversaries.png: $(RD)/adapt/last.pkl
	$(RENEW) $(CC) plot.py losses --run $(<D) --out $@
$(RD)/adapt_colour: $(RD)/adapt/last.pkl
	$(RENEW) $(CC) plot.py colour --run $(<D) --out $@_tmp

# -- an experiment of your own: its name in a list and its line; without the #, `make -f gta5.make adapt_strong` trains it ------
# ABL += adapt_strong
# $(RD)/adapt_strong: private OPT = $(BOTH) $(ADVERSARY) --lambda_adv 1e-1

include make/rules.mk
