# mypy: ignore-errors
"""Fill a domain that was just provisioned: ``ad_accounts.py SMB_CONF DIR``, with the Python that has Samba's bindings.

In one process and before the controller is started: each `samba-tool` takes 0.4 s.  What is to be there stands in
``DIR/accounts.json``; what came of it goes to ``DIR/facts.json``: SIDs, and the groups that the directory itself counts
for each user (``tokenGroups``).
"""

import json
import sys
from pathlib import Path

import ldb
import samba.dckeytab  # noqa: F401  gives Net its export_keytab
from samba import dsdb
from samba.auth import system_session
from samba.dcerpc import security
from samba.ndr import ndr_unpack
from samba.net import Net
from samba.param import LoadParm
from samba.samdb import SamDB

configuration, folder = sys.argv[1], Path(sys.argv[2])
wanted = json.loads((folder / "accounts.json").read_text())
parameters = LoadParm()
parameters.load(configuration)
database = SamDB(session_info=system_session(), lp=parameters)
users = f"CN=Users,{database.domain_dn()}"


def change(dn, **values):
    """Replace attributes."""
    message = ldb.Message(ldb.Dn(database, dn))
    for name, value in values.items():
        several = value if isinstance(value, list) else [value]
        message[name] = ldb.MessageElement(several, ldb.FLAG_MOD_REPLACE, name.replace("_", "-"))
    database.modify(message)


def sids(name, attribute):
    """The SIDs in an attribute of an account."""
    dn = f"CN={name},{users}"
    (found,) = database.search(dn, scope=ldb.SCOPE_BASE, attrs=[attribute])
    return [str(ndr_unpack(security.dom_sid, value)) for value in found[attribute]]


change(str(database.domain_dn()), lockoutThreshold=str(wanted["lockout"]))
for name, password in wanted["users"].items():
    database.newuser(name, password)
for name, password in wanted["machines"].items():
    database.newcomputer(name)
    database.setpassword(f"(sAMAccountName={name}$)", password)
for name, group in wanted["groups"].items():
    kinds = {"global": dsdb.GTYPE_SECURITY_GLOBAL_GROUP, "local": dsdb.GTYPE_SECURITY_DOMAIN_LOCAL_GROUP}
    database.newgroup(name, grouptype=kinds[group["scope"]])
    database.add_remove_group_members(name, group["members"], add_members_operation=True)
for name, values in wanted["attributes"].items():
    change(f"CN={name},{users}", **values)
for name, password in wanted["services"].items():  # again: keys are of the encryption types that are allowed by now
    database.setpassword(f"(sAMAccountName={name})", password)
for file, principal in wanted["keytabs"].items():
    Net(None, parameters).export_keytab(keytab=str(folder / file), principal=principal)
facts = {
    "users": {name: sids(name, "objectSid")[0] for name in wanted["users"]},
    "groups": {name: sids(name, "objectSid")[0] for name in wanted["groups"]},
    "tokens": {name: sids(name, "tokenGroups") for name in wanted["users"]},
}
(folder / "facts.json").write_text(json.dumps(facts))
