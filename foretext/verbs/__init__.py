"""What a person asks for, from settings to a finished folder: each verb joins the rooms below."""
