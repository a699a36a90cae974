#!/usr/bin/env bash
# A fleet of 30 devices on this machine, and what its operator meets: three jobs at once on parts of
# the fleet, a fourth that waits for devices that are away, a device whose folder was copied, and a
# coordinator that was restored from a backup of before that device was revoked. Devices train from a
# graph, without torch. The script ends with what happened, and exits 0 only if that is what should.
#
#   bash fleet.sh [FOLDER]        FOLDER must be new or empty
#
# FEDSYS and PYTHON may be set in the environment: commands, e.g. "python -m fedsys". So may PARTS, the
# parts of the fleet with their sizes: of the last part, all but two are away at first.
set -euo pipefail

FEDSYS=${FEDSYS:-fedsys}
PYTHON=${PYTHON:-python}
FOLDER=${1:-$(mktemp -d)}
mkdir -p "$FOLDER"
cd "$FOLDER"
[ -z "$(ls -A)" ] || { echo "$FOLDER is not empty; give another folder" >&2; exit 2; }
export OMP_NUM_THREADS=1 FEDSYS_HOME="$PWD/home"
read -ra PARTS <<<"${PARTS:-east:8 west:8 south:8 north:6}"

say() { printf '\n== %s\n' "$*"; }
finish() {
    code=$?
    for file in pids/*; do
        kill -CONT "$(cat "$file")" && kill "$(cat "$file")"
    done 2>/dev/null || true
    [ $code -eq 0 ] || tail -n 30 coordinator.log job-*.json >&2 || true
}
trap finish EXIT
mkdir pids logs

# start NAME WORDS...: run a fedsys command in the background; its process id is in pids/NAME
start() {
    $FEDSYS "${@:2}" >>"logs/$1.log" 2>&1 &
    echo $! >"pids/$1"
    disown $!
}

# until_there SECONDS COMMAND...: wait until a command succeeds
until_there() {
    local end=$((SECONDS + $1))
    until "${@:2}" >/dev/null 2>&1; do
        if ((SECONDS > end)); then
            echo "gave up after $1 s, waiting for: ${*:2}" >&2
            exit 1
        fi
        sleep 0.5 # each attempt may be a command, whose start costs the devices time
    done
}

start_coordinator() { # FOLDER
    : >coordinator.log
    $FEDSYS coordinator run "$1" --listen "127.0.0.1:${port:-0}" >>coordinator.log 2>&1 &
    echo $! >pids/coordinator
    disown $!
    until_there 600 grep 'listening on' coordinator.log
    port=$(sed -n 's/^listening on .*:\([0-9]*\)$/\1/p' coordinator.log | head -n 1)
}
stop() {
    kill "$(cat "pids/$1")"
    until_there 600 gone "$(cat "pids/$1")"
}
gone() { ! kill -0 "$1"; }

join_device() { # NAME
    $FEDSYS coordinator enroll hq "$1" --label "${1%-*}" --quiet |
        $FEDSYS agent join "127.0.0.1:$port" --token - "$1" >"logs/$1.log" 2>&1
}
start_device() { start "$1" agent run "$1" --graph digits.graph --data "data/$1.npz"; }
connected() { # COUNT [FOLDER]
    [ "$($FEDSYS coordinator nodes "${2:-hq}" --json | grep -c '"connected": true')" -ge "$1" ]
}
submit() { # GROUP DEVICES [FOLDER]: a job on the devices with a label; its id is in job-GROUP
    $FEDSYS job submit "${3:-hq}" job.toml --quiet --set job.name="$1" \
        --set population.devices="$1" --set population.clients="$2" --set cohort.expected="$2" \
        --set cohort.cap="$2" --set cohort.min_survivors="$(($2 - 1))" >"job-$1"
}
now() { $FEDSYS job show "${2:-hq}" "$(cat "job-$1")" --json >"job-$1.json"; }
is() { # GROUP STATUS
    now "$1"
    grep -q "\"status\": \"$2\"" "job-$1.json"
}

say "A coordinator, and a graph of the task for devices without torch"
$FEDSYS coordinator init hq --host localhost --host 127.0.0.1 >init.log
start_coordinator hq
$FEDSYS task export digits --batch-size 8 -o digits.graph
mkdir data
$PYTHON - "${PARTS[@]}" <<'PY'
import sys

import numpy as np

from fedsys import tasks

names = [f"{g}-{k}" for g, n in (each.split(":") for each in sys.argv[1:]) for k in range(int(n))]
train = tasks.load("digits").clients(tasks.DataSource()).train
for at, name in enumerate(names):
    np.savez(f"data/{name}.npz", x=train.x[at :: len(names)].numpy(), y=train.y[at :: len(names)].numpy())
open("names", "w").write("\n".join(names) + "\n")
PY
cat >job.toml <<TOML
[task]
name = "digits"
graph_sha256 = "$(sha256sum digits.graph | cut -d' ' -f1)"
[population]
partition = "iid"
[rounds]
count = 5
[local]
epochs = 2
batch_size = 8
learning_rate = 0.5
[server]
strategy = "fedavg"
[privacy]
mechanism = "distributed-gaussian"
epsilon = 4.0
[aggregation]
dropout = 0.0
[evaluation]
every = 5
TOML

all=$(grep -c . names)
last=${PARTS[-1]%:*}
away=$(grep "^$last-" names | tail -n +3)
there=$((all - $(wc -w <<<"$away")))
three=("${PARTS[@]:0:3}")

say "$all devices join with a one-time token each; $there of them run"
for part in "${PARTS[@]}"; do
    grep "^${part%:*}-" names | while read -r name; do join_device "$name"; done &
    joining+=($!)
done
for each in "${joining[@]}"; do wait "$each"; done
while read -r name; do
    grep -qx "$name" <<<"$away" || start_device "$name"
done <names
until_there 600 connected "$there"
$FEDSYS coordinator backup hq before.tar

say "Three jobs at once, on parts of the fleet that do not overlap; a fourth lacks devices"
for part in "${PARTS[@]}"; do submit "${part%:*}" "${part#*:}" & submitting+=($!); done
for each in "${submitting[@]}"; do wait "$each"; done
until_there 600 is "$last" waiting
$FEDSYS job list hq | tee at-once
for part in "${three[@]}"; do until_there 600 is "${part%:*}" completed; done
is "$last" waiting

say "The devices that were away come; the job that waited for them runs"
for name in $away; do start_device "$name"; done
until_there 600 is "$last" completed

say "A copy of a device's folder is started while the device runs"
cp -R east-1 copied
start copied agent run copied --graph digits.graph --data data/east-1.npz
until_there 600 grep "another agent with this device's keys" logs/copied.log
$FEDSYS coordinator nodes hq --json | grep '"name": "east-1"' >copied.json
stop copied
lists=$(wc -l <west-1/roster.jsonl)
$FEDSYS coordinator revoke hq east-1
heard() { [ "$(wc -l <west-1/roster.jsonl)" -gt "$lists" ]; }
until_there 600 heard # the list of devices without it has reached another one

say "The coordinator's disk is lost; its backup is older than the revocation and the jobs"
stop coordinator
mv hq lost
$FEDSYS coordinator restore before.tar hq
start_coordinator hq
until_there 600 connected "$((all - 1))"
submit west "$(grep -c '^west-' names)"
held() { $FEDSYS job show hq "$(cat job-west)" >held && grep 'coordinator recover' held; }
until_there 600 held
cat held
$FEDSYS coordinator recover hq --yes
until_there 600 is west completed

say "What happened"
failed=0
check() { # WORDS COMMAND...
    if "${@:2}" >>checks.log 2>&1; then echo "yes  $1"; else echo "NO   $1" && failed=1; fi
}
when() { # PART ROUND: the times at which its devices trained, in order
    grep -h "round $2: trained" logs/"$1"-*.log | cut -c1-23 | sort
}
three_at_once() { # the last of them began before the first one ended
    began=$(for part in "${three[@]}"; do when "${part%:*}" 1 | head -n 1; done | sort | tail -n 1)
    ended=$(for part in "${three[@]}"; do when "${part%:*}" 5 | tail -n 1; done | sort | head -n 1)
    echo "the last began at $began, the first ended at $ended"
    [ -n "$began" ] && [[ "$began" < "$ended" ]]
}
restored_knows() { $FEDSYS coordinator nodes hq --json | grep '"name": "east-1"' | grep -q '"status": "revoked"'; }
audited() { $FEDSYS job fetch hq "$(cat job-west)" run && $FEDSYS audit run; }
check "$all devices joined" [ "$($FEDSYS coordinator nodes hq --json | grep -c .)" = "$all" ]
check "three jobs ran at once" three_at_once
check "a fourth said whom it waited for" grep -E "waiting: .*$last-2" at-once
check "the copied folder was noticed by the operator" grep -E '"warning": "[^"]+"' copied.json
check "a restored coordinator ran no job before it was recovered" grep 'coordinator recover' held
check "the device that was revoked stays revoked" restored_knows
check "a job after that completed, and its audit passes" audited
exit $failed
