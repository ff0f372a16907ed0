"""What a worker can hear from the ledger instead of an answer. Users are never told of these."""


class LeaseLost(Exception):
    """The job is no longer this attempt's: it was taken over, ended by the sweeper or deleted. Stop, write nothing."""

    def __init__(self, job_id: str, attempt: int) -> None:
        super().__init__(f"{job_id}: attempt {attempt} no longer holds the lease")
        self.job_id = job_id
        self.attempt = attempt


class LedgerUnavailable(Exception):
    """The database did not answer, so the call may or may not have taken effect. Every call may be repeated."""
