"""The page table, and which pages stand in the navigation."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from facilitator.console.desk import Page, Visit
from facilitator.console.pages import appearance, audit, days, discrepancies, exports, overview, relayers, settlements, tenants
from facilitator.console.roles import Permission


class Entry(NamedTuple):
    """A line of the navigation."""

    name: str
    path: str
    label: str
    needs: Permission


ENTRIES: Final = (
    Entry("overview", "/", "Overview", "view"),
    Entry("settlements", "/settlements", "Settlements", "view"),
    Entry("discrepancies", "/discrepancies", "Discrepancies", "view"),
    Entry("days", "/days", "Close calendar", "view"),
    Entry("relayers", "/relayers", "Relayers and gas", "view"),
    Entry("tenants", "/tenants", "Tenants", "view"),
    Entry("exports", "/exports", "Exports", "export"),
    Entry("audit", "/audit", "Audit trail", "audit"),
)
PAGES: Final = (
    Page(method="GET", path="/", handler=overview.show_overview),
    Page(method="GET", path="/settlements", handler=settlements.show_settlements),
    Page(method="GET", path="/settlements.csv", handler=settlements.download_settlements, needs="export", streams=True),
    Page(method="GET", path="/settlements/{id}", handler=settlements.show_settlement),
    Page(method="GET", path="/discrepancies", handler=discrepancies.show_discrepancies),
    Page(method="GET", path="/discrepancies/{id}", handler=discrepancies.show_discrepancy),
    Page(method="POST", path="/discrepancies/{id}", handler=discrepancies.explain_discrepancy, needs="resolve"),
    Page(method="GET", path="/days", handler=days.show_days),
    Page(method="GET", path="/days/{day}", handler=days.show_day),
    Page(method="POST", path="/days/{day}/close", handler=days.close_day, needs="close"),
    Page(method="POST", path="/days/{day}/reopen", handler=days.reopen_day, needs="close"),
    Page(method="GET", path="/relayers", handler=relayers.show_relayers),
    Page(method="GET", path="/tenants", handler=tenants.show_tenants),
    Page(method="GET", path="/tenants/{id}", handler=tenants.show_tenant),
    Page(method="GET", path="/tenants/{id}/{month}", handler=tenants.show_draft),
    Page(method="GET", path="/invoices/{number}", handler=tenants.show_invoice),
    Page(method="GET", path="/exports", handler=exports.show_exports, needs="export"),
    Page(method="POST", path="/exports", handler=exports.ask_export, needs="export"),
    Page(method="GET", path="/exports/{id}", handler=exports.show_export, needs="export"),
    Page(method="GET", path="/exports/{id}/file", handler=exports.download_export, needs="export", streams=True),
    Page(method="GET", path="/exports/{id}/manifest", handler=exports.download_manifest, needs="export"),
    Page(method="POST", path="/exports/{id}/cancel", handler=exports.cancel_export, needs="export"),
    Page(method="GET", path="/audit", handler=audit.show_audit, needs="audit"),
    Page(method="POST", path="/theme", handler=appearance.choose_theme),
)


def entries_for(visit: Visit) -> Sequence[Entry]:
    """What of the navigation a visitor's role opens."""
    return [entry for entry in ENTRIES if visit.may(entry.needs)]
