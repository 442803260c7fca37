"""The local web page, `miniai ui`: the options of `miniai generate`, a preview of each step, a brush for masks.

`painter` holds a model and paints orders one after the other; `server` is the standard library's HTTP server around
it; `page/` is what the browser gets, plain HTML, CSS and JavaScript that ask nobody else for anything.
"""
