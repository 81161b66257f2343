# Heart, MR to CT (Bateson et al. 2022): myocardium, left atrium, left ventricle, ascending aorta on 256 x 256 coronal slices.
#
#   make -f whs.make                             the main runs, plots, report, archive
#   make -f whs.make ablations                   what can be taken out of the method, and one table of all
#   make -f whs.make sfda                        one run, and what it needs
#   make -f whs.make few_labels                  MR alone, seven structures: the labels of 1, 2 and 8 volumes, random weights
#                                                against pre-trained ones (Chaitanya et al. 2020)
#   make -f whs.make help
#
# Data: data/mr and data/ct if they are there; else cut from data/whs_volumes (MM-WHS: mr_train, ct_train); else that is
# unpacked from data/whs.zip (see data/whs.lineage); else it is a phantom.
SET      := whs
VOLUMES  := data/whs_volumes
LINEAGE  := data/whs.lineage
DATA     := data/mr data/ct
FEW_DATA := data/mr_few
include make/adaptation.mk
include make/few_labels.mk
LABELLED = 1 2 8

# -- facts ------------------------------------------------------------------------------------------------------------
N_CLASS  = 5
LABELS   = myocardium left_atrium left_ventricle aorta
NU       = [0.02,0.27,0.18,0.21,0.32]
G_RGX    = (\d+)_(\d+)
FEW_TT   = [('IMG', nii_transform, False), ('GT', nii_gt_transform, False)]
TT_DATA  = [('IMG', nii_transform, False), ('GT', nii_gt_transform, False), ('GT', nii_gt_transform, False)]
MAPS     = ('GT', dist_map_transform, False)
CUT      = -m preprocess.archives.mmwhs --volumes $(VOLUMES)
SLICE    = --normalise percentile --format nii --val $(N_VAL) $(CROP)
data/mr: private SLICE += --modality MR
data/ct: private SLICE += --modality CT
PRIOR    = --n_class $(N_CLASS) $(ORGANS)
FEW_SLICE = --modality MR --structures 7 --format nii --n4 --n4_shrink 4 --normalise percentile --no_clip $(FEW_CROP)
FEW_FACTS = --target_folders "$(FEW_TT)" --grp_regex '$(G_RGX)' --n_class 8

# -- settings: on the small phantom, and as published -------------------------------------------------------------------
ifeq ($(PHANTOM),small)
N_VAL    = 3
CROP     = --orient LAS
ORGANS   = --constant_mm2 1600 1300 1200 1000
LEARN    = --n_epoch 40 --l_rate 3e-3 --lr_decay 0.5 --lr_decay_epoch 15
FEW_CROP = --orient LAS --val 2
else
N_VAL    = 4
CROP     = --plane coronal --size 256 256
ORGANS   = --constant 4428 4996 4487 3706
ADAPT    = --l_rate 1e-6 --lr_decay 0.7 --weight_decay 1e-3
FEW_CROP = --orient LAS --val 10 --spacing 1.5 1.5 --size 160 160
endif

# -- an experiment of your own: its name in a list and its line; without the #, `make -f whs.make wide` trains it ------------
# ABL += wide
# $(RD)/wide: private OPT = $(START) --method sfda $(ADAPT) --batch_size 16 $(call sfda_loss,$(COLUMN))

include make/rules.mk
