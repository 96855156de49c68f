//! Drives each session from match to close, keeps its keys, judges reports, and answers queries.
