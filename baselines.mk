# What source-free adaptation is compared with, in every experiment makefile that adapts: the runs of `make … baselines`.
# A makefile that wants one of these otherwise writes its own OPT line after including this file.
#   S_DATA     the folders of the source                    LEARN  epochs and learning rate of a training from scratch
#   ADVERSARY  weight of the adversary, learning rates      L_OR   the cross-entropy, FORE the foreground classes

WITH_SOURCE = --source_dataset $(firstword $(DATA)) --source_folders "$(S_DATA)"
WITH_MAPS   = $(1)+[('GT', dist_map_transform, False)]
L_BOUNDARY  = $(L_OR)+[('BoundaryLoss', {'idc':$(FORE)}, None, None, None, 0.01)]
boundary    = --target_folders "$(WITH_MAPS)" --val_target_folders "$(WITH_MAPS)" --target_losses "$(L_BOUNDARY)" \
              --scheduler StealWeight --scheduler_params "{'to_steal': 0.01}"

# output-space adaptation with the source images, from the source network on (AdaptSegNet, Tsai et al. 2018): at the
# output alone; at the next coarser level of the decoder too
$(RD)/adapt: private OPT = $(WEIGHTS) --method adversarial $(WITH_SOURCE) $(ADVERSARY) --lambda_adv $(firstword $(LAMBDAS))
$(RD)/adapt_multi: private OPT = $(WEIGHTS) --method adversarial $(WITH_SOURCE) $(ADVERSARY) --lambda_adv $(LAMBDAS)
# boundary loss beside the cross-entropy (Kervadec et al. 2019): in the source network, in full supervision
$(RD)/cesource_boundary: private OPT = $(SOURCE) --model_weights="" $(LEARN) $(call boundary,$(S_DATA))
$(RD)/fs_boundary: private OPT = --model_weights="" $(LEARN) $(call boundary,$(TT_DATA))
