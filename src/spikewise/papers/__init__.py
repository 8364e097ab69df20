"""The experiments of the two papers, and the speed benchmark, run again. Nothing else imports this."""
