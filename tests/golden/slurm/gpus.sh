#!/bin/bash
# Run demo-0101-ab12, attempt 3: seatrial runs show demo-0101-ab12
#SBATCH --job-name=demo-0101-ab12
#SBATCH --comment=seatrial
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=96
#SBATCH --gpus-per-node=h100:8
#SBATCH --mem=0
#SBATCH --time=2-00:00:00
#SBATCH --signal=USR2@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/demo-0101-ab12/slurm-%j.out
#SBATCH --partition=main,low
#SBATCH --account=nlp
#SBATCH --qos=high
#SBATCH --constraint="ib&gen[1|2]"
#SBATCH --reservation=friday
#SBATCH --exclusive
#SBATCH --nodelist="node[1-4]"
#SBATCH --exclude=node7,node9
#SBATCH --mail-type=END,FAIL
#SBATCH --contiguous
#SBATCH --nice=100
#SBATCH --licenses=a@b:2

# Not under set -u, which the shell functions of modules don't survive. A batch job's shell may lack them.
for file in /etc/profile.d/modules.sh /etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh; do
    if ! type module >/dev/null 2>&1 && [ -r "$file" ]; then . "$file"; fi
done
for name in cuda/12.4 nccl; do
    module load "$name" || {
        echo "seatrial: module load $name failed on ${SLURMD_NODENAME:-$HOSTNAME}" >&2
        exit 4
    }
done
set -u
# What an outer job or launcher has left would reach the ranks.
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE NODE_RANK GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_WORLD_SIZE ROLE_NAME MASTER_ADDR MASTER_PORT SEATRIAL_DEADLINE \
    ${!PET_@} ${!TORCHELASTIC_@}
# srun doesn't take over what sbatch was told: the CPUs, since 22.05; the environment, where sites submit without.
export SLURM_EXPORT_ENV=ALL
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
export PYTHONPATH='/shared/my code:/shared/lib'

python=/shared/venv/bin/python
if [ -f "$python" ] && [ -x "$python" ]; then
    # Signals of Slurm go to this process: exec puts the supervisor in its place.
    shopt -s execfail
    exec "$python" -m seatrial.backends.slurm.batch /shared/runs/demo-0101-ab12 --first-attempt 3
fi
echo "seatrial: node ${SLURMD_NODENAME:-$HOSTNAME} can't run $python: it has to be there on every node" >&2
exit 4
