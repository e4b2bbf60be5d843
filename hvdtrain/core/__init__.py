"""The framework-free core: what words mean, decided once for both adapters (it imports no framework)."""
