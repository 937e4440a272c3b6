"""The page of `eval.report`: its template, its charts and its pictures."""
