#!/bin/bash
# A whole Active Directory of Samba, and beside it a member of it: ad.sh DIR PYTHON, as the first process of
# private namespaces (net, mount, pid), so that whatever it starts ends with it.  ad.py starts it and says what DIR has.
#
# Domain controller: 10.99.0.1, its daemons see this mount namespace.  Member: a mount namespace of its own, since
# libwbclient has the path of winbind's pipe compiled in, and both have one.  It ends as the process that plays.
set -euo pipefail
dir=$1 python=$2
here=$(dirname "$0")
log=$dir/setup.log
exec 3>&1 1>>"$log" 2>&1 # what is said on the way is of interest only when it fails; 3 is where the answers go

ip link set lo up
for address in 10.99.0.1 10.99.0.2; do ip addr add "$address/32" dev lo; done
mkdir "$dir/dc" "$dir/member"
for place in /run/samba "$dir/dc" "$dir/member"; do mount -t tmpfs none "$place"; done
export TDB_NO_FSYNC=1 # nothing of it has to outlive a power cut
echo 'nameserver 10.99.0.1' >"$dir/resolv.conf"
printf '%s\n' '127.0.0.1 localhost' '10.99.0.1 dc1.ad.frontd.test dc1' \
  '10.99.0.2 front.frontd.test backend.frontd.test bare.frontd.test' >"$dir/hosts"
mount --bind "$dir/resolv.conf" /etc/resolv.conf
mount --bind "$dir/hosts" /etc/hosts
export KRB5_CONFIG=$dir/krb5.conf

samba-tool domain provision --targetdir="$dir/dc" --realm=AD.FRONTD.TEST --domain=FRONTD --server-role=dc \
  --dns-backend=SAMBA_INTERNAL --adminpass='P@ssw0rd!1' --host-name=dc1 --host-ip=10.99.0.1 \
  --option='interfaces=10.99.0.1/32' --option='bind interfaces only=yes' --option='obey pam restrictions = no' \
  --option='server services = s3fs, rpc, ldap, cldap, kdc, winbindd, dns' --option='dns forwarder ='
dc=$dir/dc/etc/smb.conf
/usr/bin/python3 "$here/ad_accounts.py" "$dc" "$dir"

samba -F -s "$dc" --no-process-group --debug-stdout </dev/null >"$dir/samba.log" 2>&1 &
for port in 88 389 445; do
  for _ in $(seq 400); do
    (exec 4<>"/dev/tcp/10.99.0.1/$port") 2>/dev/null && break
    sleep 0.05
  done
done

exec unshare --mount --propagation private bash "$here/ad_member.sh" "$dir" "$python"
