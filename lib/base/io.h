/* SPDX-License-Identifier: Apache-2.0 */
/* Whole reads and writes of files. 0, negative errno; -ENODATA when a file ends early. */
#ifndef DCMEM_IO_H
#define DCMEM_IO_H

#include <stddef.h>
#include <stdint.h>

int io_read_at(int fd, void *data, size_t n_bytes, uint64_t offset);
int io_write_at(int fd, const void *data, size_t n_bytes, uint64_t offset);

#endif
