"""Reports of a study: one value that says all, and its forms as JSON, tables, pictures and an HTML page. Torch-free.

`autopeft.report.summary` makes the value (`summarise`, `report_json`), `html` the page (`write_report`), `text` the
tables, `svg` the pictures. Nothing is imported here: every verb writes numbers as `numbers` does, and few need a page.
"""
