"""Reports: results as text, JSON and HTML with plots. Needs the extra ``hesse[report]``."""

from hesse.report.case import Settings
from hesse.report.check_page import print_check, write_check
from hesse.report.checking import Checked, check_target
from hesse.report.files import to_html, to_json, write_files, write_pictures
from hesse.report.graphing import graph_target, write_graph
from hesse.report.hunting import Hunted, hunt_target, print_hunt, write_hunt
from hesse.report.report import Report, make_report
from hesse.report.target import Target, call_target, load_target
from hesse.report.terminal import print_details, print_summary
from hesse.report.user_code import UserCodeError

__all__ = [
    "Checked", "Hunted", "Report", "Settings", "Target", "UserCodeError", "call_target", "check_target", "graph_target",
    "hunt_target", "load_target", "make_report", "print_check", "print_details", "print_hunt", "print_summary", "to_html",
    "to_json", "write_check", "write_files", "write_graph", "write_hunt", "write_pictures",
]
