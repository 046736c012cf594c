#pragma once

namespace firp {

/// From now on the program ends with a message that names the file, and status 1, where a page of a
/// mapped file cannot be read: somebody cut the file, or is writing it anew, or its disk is gone.
/// The system tells of that by a signal (SIGBUS), whoever mapped the file.
void name_cut_files();

}  // namespace firp
