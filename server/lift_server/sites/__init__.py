"""The sites of a federation: roster, certificates, enrolment kit."""
