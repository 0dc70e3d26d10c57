"""Points: which ones exist, what each consists of, what is known about them. Needs no hypervisor."""
