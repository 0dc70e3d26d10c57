"""Points: which there are, what each is made of, what is known of them. Needs no hypervisor."""
