"""For those who test with trueport: planted faults whose place and cause are known."""
