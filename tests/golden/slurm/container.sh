#!/bin/bash
# Run demo-0101-ab12, attempt 3: seatrial runs show demo-0101-ab12
#SBATCH --job-name=demo-0101-ab12
#SBATCH --comment=seatrial
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --gres=gpu:8
#SBATCH --time=04:00:00
#SBATCH --signal=USR2@361
#SBATCH --no-requeue
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/demo-0101-ab12/slurm-%j.out

set -u
# What an outer job or launcher has left would reach the ranks.
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE NODE_RANK GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_WORLD_SIZE ROLE_NAME MASTER_ADDR MASTER_PORT SEATRIAL_DEADLINE \
    ${!PET_@} ${!TORCHELASTIC_@}
# srun doesn't take over what sbatch was told: the CPUs, since 22.05; the environment, where sites submit without.
export SLURM_EXPORT_ENV=ALL
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

python=/shared/venv/bin/python
if [ -f "$python" ] && [ -x "$python" ]; then
    # Signals of Slurm go to this process: exec puts the supervisor in its place.
    shopt -s execfail
    exec "$python" -m seatrial.backends.slurm.batch /shared/runs/demo-0101-ab12 --first-attempt 3
fi
echo "seatrial: node ${SLURMD_NODENAME:-$HOSTNAME} can't run $python: it has to be there on every node" >&2
exit 4
