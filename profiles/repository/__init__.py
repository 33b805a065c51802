"""All database queries, by aggregate. Repositories flush and never commit."""

from __future__ import annotations

from sqlalchemy.orm import Session

from profiles.repository.accounts import Accounts
from profiles.repository.catalog import Catalog
from profiles.repository.erasure import Erasures
from profiles.repository.fits import Fits
from profiles.repository.jobs import Jobs
from profiles.repository.resolution import Routes


class Repository:
    """The repositories of one session."""

    def __init__(self, session: Session) -> None:
        self.accounts = Accounts(session)
        self.catalog = Catalog(session)
        self.fits = Fits(session)
        self.jobs = Jobs(session)
        self.routes = Routes(session)
        self.erasures = Erasures(session)
