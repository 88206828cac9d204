"""What `remote` is made of. Together they are the only users of fabric.Connection and paramiko."""
