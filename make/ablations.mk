# What can be taken out of source-free adaptation, or put in its place: the ablations of every experiment makefile.
# A makefile that wants another version of a run writes its own line for it after including this file.
#   ENTKL     the loss of sfda and its parameters      NU       class weights of the entropy
#   FORE      the foreground classes                   ADAPT    epochs and learning rate of the adaptation
#   KEEP      how often a network is kept to choose from
#   TEACH  AGREE  DENOISE  REFINE    what mean_teacher, upl, denoised and cpr have of epochs and learning rate as published; a small
#             network, of few channels, stands dropout less

TEACH ?= $(if $(SMALL),,--n_epoch 20 --l_rate 5e-4 --lr_decay 0.9 --lr_decay_epoch 1 --betas 0.9 0.99)
AGREE ?= $(if $(SMALL),,--n_epoch 10 --l_rate 1e-5)
DENOISE ?= $(if $(SMALL),--most_spread 0.1,--n_epoch 2 --l_rate 2e-3 --betas 0.9 0.99)
REFINE  ?= $(if $(SMALL),--most_spread 0.1,--n_epoch 10 --l_rate 3e-4 --betas 0.9 0.99)
sfda_with = $(START) --method sfda $(ADAPT) $(KEEP) --target_losses

# the entropy alone, the class-ratio KL alone
$(RD)/entropy: private OPT = $(sfda_with) "[('SelfEntropy', {'weights':$(NU)}, 1)]"
$(RD)/klprop: private OPT = $(sfda_with) "[('EntKLProp', {'lamb_se':0}, $(call prior,dumbpredwtags), 'norm_soft_size', 1)]"
# no image-level tags: the same prior for every slice
$(RD)/sfda_notags: private OPT = $(sfda_with) "[($(ENTKL), $(call prior,dumbprednotags), 'norm_soft_size', 1)]"
# the plain mean of the probabilities as predicted ratio, the paper's, where the published code normalises by the maximum
$(RD)/sfda_mean: private OPT = $(sfda_with) "[($(ENTKL), $(call prior,dumbpredwtags), 'soft_size', 1)]"
# KL(prior | predicted), the direction of AdaEnt (Bateson et al. 2020)
$(RD)/adaent: private OPT = $(sfda_with) \
   "[('SelfEntropy', {'weights':$(NU)}, 1), ('KLPropInv', {}, $(call prior,dumbpredwtags), 'norm_soft_size', 1)]"
# a quadratic penalty on sizes 10 % off the prior instead of the KL (constrained domain adaptation, Bateson et al. 2021), at
# its published strength, which is that of a mean over the pixels; there in addition to the cross-entropy on source images
$(RD)/cda: private OPT = $(sfda_with) "[('SelfEntropy', {'weights':$(NU)}, 1), \
   ('NaivePenalty', {'idc':$(FORE), 'reduction':'pixels'}, $(call prior_within,0.1,dumbpredwtags), 'soft_size', 2.5)]"
# the KL is silent where the predicted size is within half of the prior, and is measured from the nearest end outside
$(RD)/sfda_margin: private OPT = $(sfda_with) "[($(ENTKL), $(call prior_within,0.5,$(COLUMN)), $(SIZE_OF), 1)]"
# the prior estimated anew after each epoch from what the network predicts, half anchored to its start (EM, Saerens et al. 2002)
$(RD)/sfda_reestimate: private OPT = $(sfda_with) \
   "[('EntKLProp', {'weights_se':$(NU), 'reestimate':0.5}, $(call prior,$(COLUMN)), $(SIZE_OF), 1)]"
# how often each class is there is estimated from what the source network predicts on the target (EM at the source's
# temperatures, Alexandari et al. 2020; ESTIMATE=em or bbse for others), as an interval, of the mean over a batch; no tag, no anatomy
ESTIMATE ?= mlls
$(RD)/sfda_em: private OPT = $(sfda_with) "[('EntKLProp', {'weights_se':$(NU), 'over':'batch'}, \
   'IntervalBounds', {'predcol':'$(ESTIMATE)','sizefile':'$(RD)/network_sizes.csv'}, 'soft_size', 1)]"
$(RD)/network_sizes.csv: | $$(START_FROM) $$(lastword $$(DATA)) $$(VENV)
	$(ONCE) $(CC) -m preprocess.size_priors make --data $(lastword $(DATA)) --out $@ --n_class $(N_CLASS) \
	   --network_weights $(START_FROM) --grp_regex '$(G_RGX)' --unlabelled --folder $(word 2,$(subst ', ,$(TT_DATA)))
# each step followed by a hundredth of the way back to the source network (ROID, Marsden et al. 2024; CMF, Lee and Chang 2024)
$(RD)/sfda_anchor: private OPT = $(sfda_with) "[($(ENTKL), $(call prior,$(COLUMN)), $(SIZE_OF), 1)]" --anchor 0.01
# the mean of the networks after the last five epochs, batch-norm statistics included (SWA, Izmailov et al. 2018)
$(RD)/sfda_wavg: private OPT = $(sfda_with) "[($(ENTKL), $(call prior,$(COLUMN)), $(SIZE_OF), 1)]" --average_last 5
# entropy over the scale and shift of the batch norms alone (TENT, Wang et al. 2021)
$(RD)/tent: private OPT = $(sfda_with) "[('SelfEntropy', {}, 1)]" --trainable bn
# online: patient by patient in their order, an update each, three rounds; SAR (Niu et al. 2023), EATA (Niu et al. 2022) and
# DeYO (Lee et al. 2024) leave out the pixels whose entropy does harm, and adapt scale and shift of the batch norms
ONLINE ?= --n_epoch 3 --l_rate 1e-3 --optimiser sgd
online_with = $(START) --method online $(ONLINE) $(KEEP) --target_losses "[('SelfEntropy', {}, 1)]"
$(RD)/sar: private OPT = $(online_with) --online sar
$(RD)/eata: private OPT = $(online_with) --online eata
$(RD)/deyo: private OPT = $(online_with) --online deyo
# a student learns what the running average of its weights says of several views, and forgets a hundredth (CoTTA, Wang et al. 2022)
$(RD)/cotta: private OPT = $(START) --method cotta $(ONLINE) --optimiser adam --l_rate 6e-5 $(KEEP)
# the same, of images in a memory in which each class has its share and the sure and recent stay, over scale and shift of batch
# norms whose statistics follow slowly (RoTTA, Yuan et al. 2023)
$(RD)/rotta: private OPT = $(START) --method rotta $(ONLINE) --optimiser adam $(KEEP)
# the centroid and spread of each class drawn to their mean over the slices, beside sfda's loss, over the scale and shift of the
# batch norms alone (Bateson, Lombaert, Ben Ayed 2022)
$(RD)/ttas: private OPT = $(sfda_with) "[($(ENTKL), $(call prior,$(COLUMN)), $(SIZE_OF), 1), \
   ('ShapeMoments', {'idc':$(FORE)}, $(call prior,$(COLUMN)), None, 1e-4)]" --trainable bn
# the target's batch-norm statistics in place of the source's, nothing else (Schneider et al. 2020)
$(RD)/bnrefresh: private OPT = $(sfda_with) "[('SelfEntropy', {}, 1)]" --trainable none --bn_stats refresh --n_epoch 1
# nothing learnt: the mean of predictions at batch-norm statistics between the source's and an image's, weighted by how sure they
# are (InTEnt, Dong et al. 2024)
$(RD)/bnmix: private OPT = $(START) --method noadap --bn_mix
# information maximisation: a uniform prior of the classes over the batch, with the classifier frozen (SHOT, Liang et al. 2020)
$(RD)/shot: private OPT = $(sfda_with) \
   "[('EntKLProp', {'over':'batch'}, 'ConstantBounds', {'values':'uniform'}, 'soft_size', 1)]" --trainable features
# a student learns what the running average of its weights says, each class as much as the average doubts it; the average is
# the network (CBMT, Tang et al. 2023)
$(RD)/mean_teacher: private OPT = $(START) --method mean_teacher $(ADAPT) $(TEACH) $(KEEP)
# pseudo labels where four positions of an image agree, with other features dropped in each (UPL-SFDA, Wu et al. 2023)
$(RD)/upl: private OPT = $(START) --method upl $(ADAPT) $(AGREE) $(KEEP) --target_losses "[('DiceLoss', {}, 1)]"
# pseudo labels of the source network that stand dropout and lie near the prototype of their class (DPL, Chen et al. 2021)
$(RD)/denoised: private OPT = $(START) --method denoised $(ADAPT) $(DENOISE) $(KEEP)
# these labels after a walk to cells that are alike, as an affinity has it which they teach (CPR, Huai et al. 2023)
$(RD)/cpr: private OPT = $(START) --method cpr $(ADAPT) $(REFINE) $(KEEP)
# nothing learnt, and the network as it is, on grey levels as an adaptation would see them: brought to those that it learnt from,
# patient by patient and by quantiles, where the network is more at home there (after Thaler et al. 2025)
$(RD)/srcmatch: private OPT = $(WEIGHTS) --method noadap --match_source auto
# pixels drawn to the rows of the frozen classifier, the source's prototypes, and these to pixels; the sizes of sfda are where the
# class prior begins (ProtoContra, stage 1, Yu et al. 2023)
$(RD)/proto: private OPT = $(START) --method prototype_alignment $(ADAPT) $(KEEP) $(call sfda_loss,$(COLUMN))
# the same prediction under two random affine views (DG-TTA, Weihsbach et al. 2025)
$(RD)/consist: private OPT = $(START) --method consistency $(ADAPT) --optimiser adamw $(KEEP) --target_losses "[('SelfEntropy', {}, 1)]"
# sfda at another learning rate, which its name tells, for a few epochs
$(RD)/sfda_at_%: private OPT = $(START) --method sfda $(ADAPT) $(PROBE) --l_rate $(patsubst sfda_at_%,%,$(@F)) $(KEEP) $(call sfda_loss,$(COLUMN))
# the source network as it is, its masks those of the highest expected Dice (RankSEG, Dai and Li 2023; Wang and Dai 2025)
$(RD)/noadap_dice: private OPT = $(WEIGHTS) --method noadap --saveim True --decode dice
# no gap: the source network adapted to its own site, which should leave it as good as it was
$(RD)/sfda_onsource: private OPT = $(sfda_with) "[($(ENTKL), $(call prior_from,$(SIZES)_source.csv,dumbpredwtags), 'norm_soft_size', 1)]" $(SOURCE)
$(RD)/noadap_onsource: private OPT = $(WEIGHTS) --method noadap $(SOURCE)
# the network that a run chose, back on its source: what it has forgotten, for whoever still has those images
$(RD)/%_back: private OPT = --method noadap --model_weights $(@:_back=)/$(if $(KEEP),chosen.pkl,last.pkl) $(SOURCE)

# One network for the target: the source network, its refresh, or what one of these runs chose of its epochs. Nobody looks at
# a label for it; the run `chosen` is that network on the target as it is, for tables and pictures. A makefile that wants
# other runs to choose among says so: CHOICES = sfda tent.
CHOICES ?= $(filter sfda sfda_at_% sfda_notags adaent tent ttas bnmix shot proto consist mean_teacher upl denoised selftrain,$(TRN) $(ABL) $(BAS))
$(RD)/choice/chosen.pkl: $$(addprefix $(RD)/,$$(addsuffix /last.pkl,$$(CHOICES)))
	$(if $(THREADS),OMP_NUM_THREADS=$(THREADS)) $(RENEW) $(CC) choose.py --runs $(addprefix $(RD)/,$(CHOICES)) --out $(@D) --overwrite$(if $(SELECT), $(SELECTED))
$(RD)/chosen: private OPT = --method noadap --model_weights $(RD)/choice/chosen.pkl --saveim True --entmap
