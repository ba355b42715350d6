"""Who names the line of the first NaN or Inf: planted faults, harmless programs, and what looking for them costs."""
