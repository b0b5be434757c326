"""The hubs that models and data sets come from and go to: names, downloads and uploads. It imports no other room."""
