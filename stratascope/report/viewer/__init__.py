"""The page that shows single examples of a store: a server for this machine, and a copy for any web host.

The page itself lies in `page`, built from the sources in the repository's folder `viewer`.
"""

from stratascope.report.viewer.page_files import PAGE_FILES, export_page, result_index
from stratascope.report.viewer.server import ViewServer, serve_store

__all__ = ["PAGE_FILES", "ViewServer", "export_page", "result_index", "serve_store"]
