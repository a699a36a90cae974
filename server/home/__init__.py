"""A coordinator's folder: its layout, database, certificates and the enrollment of devices."""
