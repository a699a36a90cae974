"""Tables computed at build time by ``python -m fedsys.privacy.tables.build`` and shipped."""
