#!/bin/bash
# The second half of ad.sh: a member of the domain with a winbind of its own; then it becomes the process that plays.
set -euo pipefail
dir=$1 python=$2
mount -t tmpfs none /run/samba
mkdir "$dir/member"/{private,state,cache,lock}
smb=$dir/member/smb.conf
cat >"$smb" <<CONF
[global]
  workgroup = FRONTD
  realm = AD.FRONTD.TEST
  security = ads
  netbios name = FRONT
  interfaces = 10.99.0.2/32
  bind interfaces only = yes
  private dir = $dir/member/private
  state directory = $dir/member/state
  cache directory = $dir/member/cache
  lock directory = $dir/member/lock
  log file = $dir/member/log
  kerberos method = secrets only
  idmap config * : backend = tdb
  idmap config * : range = 100000-199999
CONF
# The controller answers on its ports a moment before it can let anybody join
for _ in $(seq 20); do
  joined=0
  net ads join --no-dns-updates -s "$smb" -U 'Administrator%P@ssw0rd!1' && joined=1 && break
  sleep 0.1
done
[ $joined = 1 ]
winbindd -F --no-process-group -s "$smb" </dev/null >"$dir/member/winbindd.log" 2>&1 &
for _ in $(seq 100); do
  wbinfo --ping-dc && break
  sleep 0.05
done
wbinfo --ping-dc
exec "$python" -W error -m tests.windows.inside 1>&3 3>&-
