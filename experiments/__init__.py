"""One script per question; `python -m experiments` lists them. A file is a script; so is a folder
with a `__main__.py`, whose other files are its parts. What several share lies in `common`. Nothing
in `vijax/` imports from here.
"""
