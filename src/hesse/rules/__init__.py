"""Knowledge, one small file per key: forms, layer rules, loss rules."""
