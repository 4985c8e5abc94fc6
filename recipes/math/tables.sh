#!/usr/bin/env bash
# Every cell of the paper's Tables 2 and 3, one run after the other; LAUNCH=echo prints the commands.
set -eu
LAUNCH=${LAUNCH:-python}
LOSS=actor_rollout_ref.actor.policy_loss.f_divergence
declare -A DATA_GROUP=([gsm8k]="" [limr]=",data_limr" [open_rs]=",data_open_rs")

for model in ${MODELS:-math_1_5b math_7b}; do
  for data in ${DATA:-gsm8k limr open_rs}; do
    for algorithm in ${ALGORITHMS:-grpo kl reverse_kl pearson squared_hellinger jensen_shannon total_variation}; do
      if [ "$algorithm" = grpo ]; then
        chosen=(algorithm.adv_estimator=grpo "~$LOSS")
      else
        chosen=("$LOSS.divergence=$algorithm")
      fi
      $LAUNCH -m verl.trainer.main_ppo "+fgrpo=[$model${DATA_GROUP[$data]}]" "${chosen[@]}" "$@"
    done
  done
done
