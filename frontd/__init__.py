"""frontd: the front door of container deployments.

The package root belongs to people who write plugins; nothing inside frontd imports names from it.
"""

__version__ = "0.1.0"
