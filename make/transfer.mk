# Source networks that learn from images as other scanners would show them, so that there is less to adapt: ablations of every
# makefile that adapts. Each is cesource but for what it sees (datasets/presets.py); the table has what that costs on the
# source's own validation images, in the column `against cesource`. noadap_… is the same network on the target as it is.
#   MOVES   what the makefile's own cesource sees besides, as: , 'flip': True
#   ALSO    ways of which an adaptation may start instead of cesource: ALSO = transfer slaug. Each is trained, and shown the target
#           unadapted in the grey levels that it is at home in (srcmatch_<way>). Of these, cesource and their batch-norm refreshes
#           choose.py takes the start
# Every adaptation can start from any of them, or from another run, best in a folder of its own:
#   make -f prostate.make ablations SOURCE_RUN=cesource_slaug RD=results/prostate-slaug
# and `make -f prostate.make cross` is all of them, adapted in several ways, in one table (cross.mk).
MOVES ?=
seen_as  = $(SOURCE) --model_weights="" $(LEARN) --augment --augmentation "{'preset': '$(strip $(1))'$(MOVES)}"
from_it  = --method noadap --model_weights $(RD)/cesource_$(strip $(1))/$(CHOSEN)
WAYS     = gin ipa slaug saliency mixstyle bigaug transfer sizes
TRANSFER = $(WAYS:%=cesource_%) $(WAYS:%=noadap_%)
ALSO    ?=
HOMES    = $(foreach way,$(ALSO),$(if $(filter $(way),$(WAYS)),srcmatch_$(way),$(error ALSO names ways to train a source \
             network, and '$(way)' is none; they are: $(WAYS))))
STARTS   = $(if $(HOMES),srcmatch $(HOMES))
ABL     += $(filter-out $(TRN),$(TRANSFER) $(HOMES))

# images blended with what random convolutional networks make of them (GIN, Ouyang et al. 2022)
$(RD)/cesource_gin: private OPT = $(call seen_as,gin)
$(RD)/noadap_gin: private OPT = $(call from_it,gin)
# two such views blended place by place, each way round, and the predictions on them drawn together: CSDG as published
$(RD)/cesource_ipa: private OPT = $(SOURCE) --model_weights="" $(LEARN) --method ipa --augment \
   --augmentation "{'preset': 'gin', 'gin': 0$(MOVES)}"
$(RD)/noadap_ipa: private OPT = $(call from_it,ipa)
# random curves of grey levels, of whole images or class by class (SLAug without its saliency, Su et al. 2023)
$(RD)/cesource_slaug: private OPT = $(call seen_as,slaug)
$(RD)/noadap_slaug: private OPT = $(call from_it,slaug)
# both a step, the second only where the loss on the first is not steep: SLAug as published
$(RD)/cesource_saliency: private OPT = $(SOURCE) --model_weights="" $(LEARN) --method saliency --augment \
   --augmentation "{'preset': 'slaug', 'curves': 0, 'label_curves': 0$(MOVES)}"
$(RD)/noadap_saliency: private OPT = $(call from_it,saliency)
# means and deviations of the first maps exchanged between the images of a batch (MixStyle, Zhou et al. 2021)
$(RD)/cesource_mixstyle: private OPT = $(SOURCE) --model_weights="" $(LEARN) --method mix_style \
   $(if $(MOVES),--augment --augmentation "{'contrast': 0.5$(MOVES)}")
$(RD)/noadap_mixstyle: private OPT = $(call from_it,mixstyle)
# blur, sharpening, noise, grey levels, turns, sizes, elastic deformation (BigAug, Zhang et al. 2020)
$(RD)/cesource_bigaug: private OPT = $(call seen_as,bigaug)
$(RD)/noadap_bigaug: private OPT = $(call from_it,bigaug)
# the curves on three of four images, mild moves, and a worse scanner
$(RD)/cesource_transfer: private OPT = $(call seen_as,transfer)
$(RD)/noadap_transfer: private OPT = $(call from_it,transfer)
# every size from 0.4 to 2.5 times its own, for pictures without a spacing: a volume is resampled to one instead
$(RD)/cesource_sizes: private OPT = $(call seen_as,sizes)
$(RD)/noadap_sizes: private OPT = $(call from_it,sizes)
# any of them, shown the target as an adaptation would show it
$(RD)/srcmatch_%: private OPT = --method noadap --model_weights $(RD)/cesource_$(patsubst srcmatch_%,%,$(@F))/$(CHOSEN) $(MATCH:%=--match_source %)
$(RD)/start/chosen.pkl: $$(addprefix $(RD)/,$$(addsuffix /last.pkl,$$(STARTS)))
	$(if $(THREADS),OMP_NUM_THREADS=$(THREADS)) $(RENEW) $(CC) choose.py --start --runs $(addprefix $(RD)/,$(STARTS)) --out $(@D) --overwrite
