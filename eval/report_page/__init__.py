"""The page of `eval.report`: its template and its pictures."""
