"""The live viewer: what a browser is shown of a model while it learns or afterwards.

`pictures` makes pictures of what is asked for, `loop` decides what is drawn next and how finely, `path_editor` keeps
the keyframes of a camera path, `session` is what all open browsers share, `page` the only file that knows the web
server (viser).
"""
