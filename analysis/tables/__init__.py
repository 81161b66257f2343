"""Tables of finished runs, by patient, by class, over draws, as text, csv, Markdown and LaTeX."""
