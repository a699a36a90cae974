"""Live, read-only pages for one person: of a coordinator's operator, and of a researcher's runs."""
