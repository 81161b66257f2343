# What source-free adaptation is compared with, in every experiment makefile that adapts: the runs of `make … baselines`.
# A makefile that wants another version of a run writes its own line for it after including this file.
#   S_DATA     the folders of the source                    LEARN    epochs and learning rate of a training from scratch
#   MAPS       the folder of the distance maps              LAMBDAS  weights of the adversaries, ADVERSARY its settings
#   L_OR       the cross-entropy                            FORE     the foreground classes

WITH_SOURCE = --source_dataset $(firstword $(DATA)) --source_folders "$(S_DATA)"
WITH_MAPS   = $(1)+[$(MAPS)]
GDL         = [('GeneralizedDice', {}, None, None, None, 1)]
# the boundary loss with a regional loss, from which it takes its weight: $(call boundary,folders,losses)
boundary    = --target_folders "$(WITH_MAPS)" --val_target_folders "$(WITH_MAPS)" \
              --target_losses "$(2)+[('BoundaryLoss', {'idc':$(FORE)}, None, None, None, 0.01)]" \
              --scheduler StealWeight --scheduler_params "{'to_steal': 0.01}"

# output-space adaptation with the source images, from the source network on (AdaptSegNet, Tsai et al. 2018): at the
# output alone; at the next coarser level of the decoder too
$(RD)/adapt: private OPT = $(WEIGHTS) --method adversarial $(WITH_SOURCE) $(ADVERSARY) --lambda_adv $(firstword $(LAMBDAS))
$(RD)/adapt_multi: private OPT = $(WEIGHTS) --method adversarial $(WITH_SOURCE) $(ADVERSARY) --lambda_adv $(LAMBDAS)
# boundary loss (Kervadec et al. 2019): with the cross-entropy in the source network; with the generalised Dice in full
# supervision, and the generalised Dice alone
$(RD)/cesource_boundary: private OPT = $(SOURCE) --model_weights="" $(LEARN) $(call boundary,$(S_DATA),$(L_OR))
$(RD)/fs_boundary: private OPT = --model_weights="" $(LEARN) $(call boundary,$(TT_DATA),$(GDL))
$(RD)/fs_gdl: private OPT = --model_weights="" $(LEARN) --target_losses "$(GDL)"
