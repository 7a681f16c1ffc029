/* recover_tree.h - a recovery's tree for export/tree.h, with the disks of the VMs found in a
 * directory ".disks" beside the files.  In the worker; serves until the mount ends. */
#pragma once

#include "export/tree.h"
#include "programs/recover_cli.h"

/* only: a VM's id, whose directory is called "vm" then; 0: all, by their names. */
int recover_tree_serve(struct recover *rc, struct tree_mount *m, uint64_t only);
