"""The plugins that come with frontd; each uses only what ``import frontd`` gives, and is armed by the configuration."""
