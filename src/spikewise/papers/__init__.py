"""The experiments of the two papers, repeated, and the speed benchmark. Nothing else imports this."""
