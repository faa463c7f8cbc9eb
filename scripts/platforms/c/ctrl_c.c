// Starts a program in a console of their own and presses Ctrl-C there as soon as a file appears.
//
//   ctrl_c FILE COMMAND-LINE      exit code of the program; 250 and above: what could not be done
#include <stdio.h>
#include <wchar.h>
#include <windows.h>

// Both hear it; this one goes on.
static BOOL WINAPI heard(DWORD event) { return event == CTRL_C_EVENT; }

int wmain(int count, wchar_t **arguments) {
    if (count != 3)
        return 250;
    // Before there is a console, which would be in their place.
    STARTUPINFOW startup = {.cb = sizeof startup, .dwFlags = STARTF_USESTDHANDLES};
    startup.hStdInput = GetStdHandle(STD_INPUT_HANDLE);
    startup.hStdOutput = GetStdHandle(STD_OUTPUT_HANDLE);
    startup.hStdError = GetStdHandle(STD_ERROR_HANDLE);
    FreeConsole();
    if (!AllocConsole() || !SetConsoleCtrlHandler(heard, TRUE))
        return 251;
    PROCESS_INFORMATION process;
    if (!CreateProcessW(NULL, arguments[2], NULL, NULL, TRUE, 0, NULL, NULL, &startup, &process))
        return 252;
    while (GetFileAttributesW(arguments[1]) == INVALID_FILE_ATTRIBUTES)
        if (WaitForSingleObject(process.hProcess, 10) == WAIT_OBJECT_0)
            return 253;
    if (!GenerateConsoleCtrlEvent(CTRL_C_EVENT, 0))
        return 254;
    DWORD code = 255;
    if (WaitForSingleObject(process.hProcess, 60000) != WAIT_OBJECT_0)
        TerminateProcess(process.hProcess, 255);
    else
        GetExitCodeProcess(process.hProcess, &code);
    return (int)code;
}
