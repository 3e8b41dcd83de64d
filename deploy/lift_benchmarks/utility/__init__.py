"""What patient-level privacy costs: gains on phantoms by epsilon, mode and number of patients."""
