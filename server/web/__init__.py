"""The operator's page: what is known of fleet, jobs and ledgers, live and read-only."""
