"""An app that ends its process while it is imported."""

import sys

sys.exit("it is broken")
