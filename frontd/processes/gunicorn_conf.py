"""What gunicorn is told in the preset beside its arguments: a file, since older ones refuse arguments they do not know,
but pass over settings.  Your own ``gunicorn.conf.py`` in the working directory counts as ever.
"""

import os

if os.path.exists("gunicorn.conf.py"):
    with open("gunicorn.conf.py", encoding="utf-8") as _file:
        exec(compile(_file.read(), os.path.abspath("gunicorn.conf.py"), "exec"), globals())

control_socket_disable = True  # one path for all gunicorns of a user, and frontd is in control
