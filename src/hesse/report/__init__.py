"""Reports: results as text, JSON and HTML with plots. Needs the extra ``hesse[report]``."""

from hesse.report.case import Settings
from hesse.report.files import to_html, to_json, write_files, write_pictures
from hesse.report.report import Report, make_report
from hesse.report.target import Target, load_target
from hesse.report.terminal import print_details, print_summary
from hesse.report.user_code import UserCodeError

__all__ = [
    "Report", "Settings", "Target", "UserCodeError", "load_target", "make_report", "print_details", "print_summary", "to_html",
    "to_json", "write_files", "write_pictures",
]
