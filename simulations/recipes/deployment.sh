#!/usr/bin/env bash
# A whole deployment on this machine, and how it survives crashes: a certificate authority, a
# coordinator, five devices with a fifth of the data each, a job without noise. One device is killed
# in the middle of a round and started again; the coordinator is killed (kill -9) in every stage of
# a round and started again. The job still ends, its audit passes, and its model is computed again
# to the bit. Takes about a minute of CPU time.
#
#   bash deployment.sh                          on handwritten digits, in a folder of its own
#   FEDSYS_DATA=DIR TASK=mnist bash deployment.sh FOLDER          (DIR holds mnist.npz)
#
# FEDSYS, TASK, AGENTS and STAGES may be set in the environment. FOLDER must be new or empty.
set -euo pipefail

FEDSYS=${FEDSYS:-fedsys} # a command, e.g. "python -m fedsys"
TASK=${TASK:-digits}
AGENTS=${AGENTS:-5}
STAGES=${STAGES:-upload endorse answer}
FOLDER=${1:-$(mktemp -d)}
mkdir -p "$FOLDER"
cd "$FOLDER"
[ -z "$(ls -A)" ] || { echo "$FOLDER is not empty; give another folder" >&2; exit 2; }
export OMP_NUM_THREADS=1 FEDSYS_HOME="$PWD/home"

say() { printf '\n== %s\n' "$*"; }
pids=()
finish() {
    code=$?
    for pid in "${pids[@]}"; do
        kill -CONT "$pid" && kill "$pid"
    done 2>/dev/null || true
    [ $code -eq 0 ] || tail -n 20 ./*.log >&2
}
trap finish EXIT

# start NAME WORDS...: run a fedsys command in the background; its output goes to NAME.log, its
# process id is $started
start() {
    $FEDSYS "${@:2}" >>"$1.log" 2>&1 &
    started=$!
    pids+=("$started")
    disown "$started"
}

# until_there SECONDS COMMAND...: wait until a command succeeds
until_there() {
    for ((tries = 0; tries < 10 * $1; tries++)); do
        "${@:2}" >/dev/null 2>&1 && return
        sleep 0.1
    done
    echo "gave up waiting for: ${*:2}" >&2
    exit 1
}

start_coordinator() {
    start coordinator coordinator run hq --listen "127.0.0.1:${port:-0}"
    coordinator=$started
    if [ -z "${port:-}" ]; then
        until_there 120 grep 'listening on' coordinator.log
        port=$(sed -n 's/^listening on .*:\([0-9]*\)$/\1/p' coordinator.log | head -n 1)
    fi
}

start_agent() {
    start "device-$1" agent run "device-$1" --data "$TASK" --shard "$1/$AGENTS"
    agents[$1]=$started
}

# freeze_in STAGE: let the coordinator run in very small steps, and stop it (kill -STOP) in STAGE of
# a round after the last one found this way. A stage is in the coordinator's database before any of
# its messages is sent.
last=0
freeze_in() {
    last=$(python3 - "$coordinator" "$1" "$last" <<'PY'
import os, signal, sqlite3, sys, time

process, wanted, last = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
database = sqlite3.connect("file:hq/state.sqlite?mode=ro", uri=True, timeout=0.2)


def look():
    try:
        return database.execute("select round, stage, status, reason from jobs").fetchone()
    except sqlite3.OperationalError:  # the coordinator was stopped during a write
        return last, "", "running", ""


ends = time.monotonic() + 900
while time.monotonic() < ends:
    os.kill(process, signal.SIGSTOP)
    round, stage, status, reason = look()
    if stage == wanted and round > last:
        time.sleep(0.02)  # until all its threads have stopped
        if look()[:3] == (round, stage, status):
            print(round)
            sys.exit()
    os.kill(process, signal.SIGCONT)
    if status not in ("submitted", "waiting", "running"):
        sys.exit(f"the job is {status}: {reason or 'its rounds are over'}; no stage {wanted} came")
    time.sleep(0.001)
sys.exit(f"no stage {wanted} came")
PY
    )
    echo "round $last, stage $1"
}

gone() { ! kill -0 "$1"; }

say "A coordinator: certificate authority, keys, database"
$FEDSYS coordinator init hq --host localhost --host 127.0.0.1 | tee init.log
key=$(sed -n 's/^ledgers are signed by *//p' init.log)
start_coordinator
echo "listening at port $port"

say "$AGENTS devices join with a one-time token each, and run"
for ((i = 0; i < AGENTS; i++)); do
    $FEDSYS coordinator enroll hq "device-$i" --quiet |
        $FEDSYS agent join "127.0.0.1:$port" --token - "device-$i"
    start_agent "$i"
done

say "Their owners allow a job without noise: its epsilon has no limit"
for ((i = 0; i < AGENTS; i++)); do
    until_there 120 grep -s '^epsilon = ' "device-$i/policy.toml"
    sed -i.before 's/^epsilon = .*/epsilon = inf/' "device-$i/policy.toml"
done

say "A job"
rounds=$(($(wc -w <<<"$STAGES") + 4)) # each kill of the coordinator costs a round
cat >job.toml <<TOML
[job]
name = "walkthrough"
[task]
name = "$TASK"
[population]
clients = $AGENTS
partition = "iid"
[cohort]
expected = $AGENTS
cap = $AGENTS
min_survivors = 3
[rounds]
count = $rounds
[local]
batch_size = 100
learning_rate = 0.2
[server]
strategy = "fedavg"
[privacy]
mechanism = "none"
clip = 10.0
[aggregation]
dropout = 0.2
corrupt = 0.1
[evaluation]
every = $rounds
TOML
job=$($FEDSYS job submit hq job.toml --quiet)
echo "job $job"

say "A device is killed in the middle of a round, and started again"
freeze_in upload
kill -9 "${agents[0]}"
until_there 60 gone "${agents[0]}"
kill -CONT "$coordinator"
start_agent 0

for stage in $STAGES; do
    say "kill -9 of the coordinator in stage $stage; it is started again"
    freeze_in "$stage"
    kill -9 "$coordinator"
    until_there 60 gone "$coordinator"
    start_coordinator
done

say "The job ends"
until_there 120 $FEDSYS job list hq
$FEDSYS job watch hq "$job"

say "Its run is fetched and audited"
$FEDSYS job fetch hq "$job" run
$FEDSYS audit run --key "$key"

say "The same survivors, trained again as virtual clients, give the same model"
$FEDSYS simulate --replay run
